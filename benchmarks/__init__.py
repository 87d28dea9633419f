"""What asyncflow costs, against raw asyncio in the same process. Run: ``python -m benchmarks``."""

"""The dashboard and its REST API, as an application of aiohttp.

An engine that nobody looks at imports nothing of it. User code is not imported and nothing is
unpickled here: what is shown is what is stored.
"""

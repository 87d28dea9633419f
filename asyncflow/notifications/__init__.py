"""How people are told: channels, templates, and the ways on which messages go.

Nothing here is imported before it is needed; what needs other libraries is the extra
``notifications``.
"""

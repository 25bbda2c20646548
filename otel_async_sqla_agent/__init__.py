"""
Zero-code OpenTelemetry spans for SQLAlchemy's asyncio extension.
"""

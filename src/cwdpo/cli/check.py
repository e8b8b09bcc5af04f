"""placeholder"""


def check(data: str) -> None:
    """x"""

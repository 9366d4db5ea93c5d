"""What takes longest starts first, so that the other process of `make test` is not left waiting for it at the end."""

import signal

import pytest

LONGEST_FIRST = ("tests/test_recipes.py", "tests/storage/test_machine.py", "tests/collectors/test_machine.py")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would children


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of LONGEST_FIRST, in that order; then the others as they were."""
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))

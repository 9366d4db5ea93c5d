"""Put on the path of child processes by conftest: they log at DEBUG into a file that is looked through for the key."""

import logging
import os

logging.basicConfig(level=logging.DEBUG, filename=f"{os.environ['POTSTILL_DEBUG_LOGS']}/{os.getpid()}.log")

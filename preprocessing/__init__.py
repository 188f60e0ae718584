"""Raw files to a processed data set, and its reader."""

import os

# Before pyarrow is imported: its own allocator begins with huge pages, which take a list of movies up to 35 ms and a
# preprocessing up to 70 MB more than the system's. Who names one keeps it.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

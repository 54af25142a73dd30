"""Read by every Python that tests start: it looks for garbage less often, and not when it ends.

TensorFlow makes a million objects while it is imported, none of them garbage. Looking for it took a
third of the time that a rank needs to start and to end, and the tests start hundreds.
"""

import atexit
import gc

gc.set_threshold(50_000, 20, 20)
atexit.register(gc.freeze)

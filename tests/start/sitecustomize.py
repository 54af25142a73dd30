"""Read by every Python that tests start: what makes it start and end sooner.

It looks for garbage less often, and not when it ends. TensorFlow makes a million objects while it
is imported, none of them garbage; looking for it took a third of the time that a rank needs to
start and to end, and the tests start hundreds.

And Keras does not find scikit-learn and Matplotlib, for wrappers and pictures of its own that no
test uses: to import them is a quarter of the time that a rank needs to start. Others find them.
"""

import atexit
import gc
import sys

_UNUSED = {"sklearn": "keras.src.wrappers.", "matplotlib": "keras.src.visualization."}


class NotForKeras:
    """Says to Keras that there are no such packages."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        """Finds nothing, so that others are asked; or says that there is nothing to find."""
        frame = sys._getframe() if name in _UNUSED else None
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith(_UNUSED[name]):
                raise ModuleNotFoundError(f"{name} is not for Keras", name=name)
            frame = frame.f_back


gc.set_threshold(50_000, 20, 20)
atexit.register(gc.freeze)
sys.meta_path.insert(0, NotForKeras)

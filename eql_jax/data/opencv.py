"""OpenCV, imported when it is needed and kept to one thread."""

import functools


@functools.cache
def opencv():
    """Returns the module cv2, without threads of its own: rows of a batch are made in parallel already.

    Raises:
      ImportError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "data.fast_pixels, data.photometric and data.copy_paste need OpenCV: pip install opencv-python-headless"
        ) from error
    cv2.setNumThreads(1)
    return cv2

"""Parts of the embedded data set (`eql_jax.data.supershapes`): class contours, the frequency plan, the pictures.

families of contours -> catalogue (which contour is which class) -> plan (which classes are in which image) -> scene
(one picture and its annotations) -> make (all pictures, by several processes).
"""

try:
    import cv2  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the shapes data set is drawn with OpenCV, which cannot be imported ({error}): pip install "
        "opencv-python-headless (where opencv-python is installed and libGL is missing, add --force-reinstall)"
    ) from error

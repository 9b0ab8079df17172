"""Parts of the embedded data set (`eql_jax.data.supershapes`): class contours, the frequency plan, the pictures.

contours -> catalogue (which contour is which class) -> plan (which classes are in which image) -> scene (one picture
and its annotations) -> make (all pictures, by several processes).
"""

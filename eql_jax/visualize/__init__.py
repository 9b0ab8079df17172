"""Pictures of detections and ground truth."""

from eql_jax.visualize.draw import ClassLabel, class_labels, draw_detections, draw_objects, side_by_side

__all__ = ["ClassLabel", "class_labels", "draw_detections", "draw_objects", "side_by_side"]

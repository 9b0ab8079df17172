"""From detections to LVIS results files to average precision.

results = detections_to_results(detections, batch, class_ids)
print(format_table(evaluate("lvis_v1_val.json", results)))
"""

from eql_jax.evaluation.columns import ResultTable
from eql_jax.evaluation.evaluator import ClassResult, EvaluationResult, evaluate
from eql_jax.evaluation.results import ResultWriter, detections_to_results, load_results, merge_results
from eql_jax.evaluation.tables import format_pooled_table, format_table, write_class_csv, write_metrics_json

__all__ = [
    "ClassResult",
    "EvaluationResult",
    "ResultTable",
    "ResultWriter",
    "detections_to_results",
    "evaluate",
    "format_pooled_table",
    "format_table",
    "load_results",
    "merge_results",
    "write_class_csv",
    "write_metrics_json",
]

"""How well the masks fit: overlap, surface distance, intervals."""

from nissl.evaluate.compare import Compared, Comparison, compare_scores
from nissl.evaluate.overlap import EMPTY_POLICY, Overlap, overlap, pooled
from nissl.evaluate.statistics import (
    Difference,
    bootstrap_interval,
    holm,
    mean_over_classes,
    paired_difference,
    paired_t_test,
    seed_interval,
    sign_flip_test,
)
from nissl.evaluate.surface import SurfaceDistance, surface_distance
from nissl.evaluate.table import CaseScore, Scores, Summary, score_case, scores_from_csv, scores_to_csv, summarise
from nissl.rooms import open_room

open_room(__name__)

__all__ = [
    "EMPTY_POLICY",
    "CaseScore",
    "Compared",
    "Comparison",
    "Difference",
    "Overlap",
    "Scores",
    "Summary",
    "SurfaceDistance",
    "bootstrap_interval",
    "compare_scores",
    "holm",
    "mean_over_classes",
    "overlap",
    "paired_difference",
    "paired_t_test",
    "pooled",
    "score_case",
    "scores_from_csv",
    "scores_to_csv",
    "seed_interval",
    "sign_flip_test",
    "summarise",
    "surface_distance",
]

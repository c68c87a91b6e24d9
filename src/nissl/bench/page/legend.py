"""The legend of a bench: what its columns mean, a paragraph each."""

from collections.abc import Sequence

from nissl.bench.analysis.tables import Table
from nissl.metrics.overlap import EMPTY_POLICY

ARMS = (
    "An arm is what is done in stage 1, from unlabelled images (none: nothing), + the method of stage 2, which learns "
    "from the masks of the budget and, unless it is supervised, from unlabelled images as well. HD95 is the distance "
    "that 95 % of the points of the two outlines are within: smaller is better. The last row is the score of a mask "
    "that is foreground in every pixel: an arm that is no better has learnt nothing."
)
SCORES = (
    "Dice is the mean over test cases (of several classes, then over them), then over seeds, in percent. The interval "
    "over seeds (Student's t) is for the mean of many such trainings, the one over cases or patients (bootstrap, all "
    "seeds of a case together) for other images of this kind. Pooled Dice takes the pixels of all images together."
)
DIFFERENCES = (
    "The difference is to the baseline, in percentage points of Dice, paired by seed and by case. The p-value over "
    "seeds is that of the paired t-test, the one over cases or patients that of the sign-flip test; both are corrected "
    "for the number of arms in the table (Holm). An arm is better or worse only where both are below 0.05 and the "
    "false-positive cases do not contradict it: where only one of the two shows a class that is absent, that pair has "
    "no difference."
)
TOGETHER = (
    "All tables together: the difference averaged over the tables for each seed, then over the seeds that are finished "
    "in all of them. Each table weighs the same; the interval and the p-value (corrected in the same way) are over "
    "seeds alone, so they hold for these test images: for others of this kind, the tables have the test over cases or "
    "patients. A star: the table itself shows it, by both tests, corrected for its arms but not for the number of "
    "tables."
)
EQUIVALENT = (
    "Annotation equivalent: the labels that the baseline needs to match the arm. Its gain is added to the baseline's "
    "own curve (made one that never falls, linear in the logarithm of the masks, of the budgets at which all runs of "
    "the baseline are done). Where that is above or below the whole curve, the largest or smallest budget is the bound "
    "(> or <). In brackets the same for the ends of the gain's interval over seeds; the curve itself is taken as "
    "known, so the true span is wider."
)
PASSES = (
    "Network passes: the floating-point operations of the whole training, both stages, over those of one image's way "
    "forward through the network; a supervised step of 8 images is about 24. Compute is this number in multiples of "
    "the baseline's. Time of a step and peak memory are those of a few steps in a process of its own, before the runs "
    "began, on the machine that the bench was started on; on the CPU the time is that of the processor, and the memory "
    "that of the whole process with its libraries."
)


def legend(tables: Sequence[Table]) -> tuple[str, ...]:
    """Explain what is on the page of these tables, and nothing else."""
    together = (TOGETHER,) if len(tables) > 1 else ()
    equivalent = (EQUIVALENT,) if any(row.equivalent for table in tables for row in table.rows) else ()
    return (ARMS, SCORES, EMPTY_POLICY, DIFFERENCES, *together, *equivalent, PASSES)

"""Flow of the solution procedure as an objective: see `cktf.functional.fsp`."""

from typing import Any

from torch import Tensor
from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError, ShapeError
from cktf.functional import fsp_loss
from cktf.functional.fsp import check_maps
from cktf.objectives.base import BuildContext, Loss, Objective, Phase, single_term_loss
from cktf.objectives.pairs import require_not_none, stage_maps
from cktf.taps import Features


class FSP(Objective):
    """Go from stage to stage as the teacher does; an initialization of the student.

    Mean squared difference of `(1/HW) Σ f_k f_{k+1}ᵀ` of neighboring maps, summed. The two
    networks need equal widths.

    The initialization minimizes this loss times its weight in the method string, 50 unless given;
    the published code leaves the weight out there, so that its steps are smaller.

    Args:
        init_lr: learning rate of the initialization.
    """

    title = "Flow of the solution procedure"
    paper = "CVPR 2017"
    default_weight = 50.0
    requires = frozenset({"stem", "stages"})
    capturable = True
    only_initializes = True

    def __init__(self, init_lr: float = 0.05) -> None:
        super().__init__()
        self.init_lr = init_lr

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks of equal widths."""
        try:
            check_maps(*_maps(*context.both_features("FSP")))
        except ShapeError as error:
            raise MethodError(str(error)) from error
        return cls(**options)

    def phases(self) -> list[Phase]:
        """The student's layers, on this loss alone."""
        return [Phase("fsp", self, self.init_lr)]

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        return single_term_loss("fsp", fsp_loss(*_maps(student, teacher)))


def _maps(student: Features, teacher: Features | None) -> tuple[list[Tensor], list[Tensor]]:
    students, teachers = stage_maps("FSP", student, teacher)
    teacher = require_not_none(teacher, "FSP's teacher")
    stems = (
        require_not_none(student.stem, "FSP's stem"),
        require_not_none(teacher.stem, "FSP's stem"),
    )
    return [stems[0], *students], [stems[1], *teachers]

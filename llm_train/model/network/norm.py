"""LayerNorm and RMSNorm whose statistics are float32 whatever the precision of the run.

torch's own modules leave the accumulation type to the kernel that is picked and refuse an input and
a weight of different dtypes. Here the input is raised to float32 (float64 stays), normalised,
scaled, and only the result returns to the input's dtype. Compiled, this is one kernel that reads
and writes the low-precision tensors; eager, it costs a float32 copy.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from llm_train.model.network.architecture import Architecture
from llm_train.runtime.autocast import at_least_float32


class LayerNorm(nn.LayerNorm):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        wide = at_least_float32(x)
        weight = self.weight.to(wide.dtype)
        bias = None if self.bias is None else self.bias.to(wide.dtype)
        return F.layer_norm(wide, weight.shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.RMSNorm):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last dimension (arXiv:1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        wide = at_least_float32(x)
        weight = self.weight.to(wide.dtype)
        return F.rms_norm(wide, weight.shape, weight, self.eps).to(x.dtype)


def make_norm(config: Architecture) -> nn.Module:
    """The norm that a configuration names; RMSNorm has no bias whatever ``bias`` says."""
    if config.norm == "layernorm":
        return LayerNorm(config.width, eps=config.norm_eps, bias=config.bias)
    if config.norm == "rmsnorm":
        return RMSNorm(config.width, eps=config.norm_eps)
    return nn.Identity()

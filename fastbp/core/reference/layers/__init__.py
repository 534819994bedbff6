"""The layers' kernels in NumPy, one module per kind, as in core/layers/; importing one registers its kinds."""

from fastbp.core.reference.layers import activation as activation
from fastbp.core.reference.layers import dense as dense
from fastbp.core.reference.layers import dropout as dropout
from fastbp.core.reference.layers import embedding as embedding
from fastbp.core.reference.layers import join as join
from fastbp.core.reference.layers import normalization as normalization
from fastbp.core.reference.layers import sparse as sparse
from fastbp.core.reference.layers.record import KINDS as KINDS

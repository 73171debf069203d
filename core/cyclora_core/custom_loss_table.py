"""Every operation that a custom loss may use: the allow-list, as one table.

Names that are not here do not exist: nothing is ever looked up by a name that a tenant sent
anywhere but in this table. Left out on purpose are operations in place, random ones, those that
leave torch, and those whose gradient takes more than linear time (``cumprod``).

Grammar of a line: ``operation(parameter, parameter:kind=default, ...) = names``. A name with a dot
in front is a tensor method, one with an @ is an attribute; others are dotted functions as torch.fx
writes them. A parameter without a kind is a tensor; ``*`` takes what is left of the positional
arguments. A parameter whose default is null may be null.

::

    tensor       a node that gives a tensor
    operand      a tensor, or a number or boolean
    any          a tensor, or a tuple that an earlier operation gave
    number, int, bool
    ints         an integer, or a list of them
    shape        a list of integers, or as many arguments
    tensors      a list of tensors
    index        what stands between brackets: integers, slices, None, ..., tensors
    dtype        one of DTYPES
    conversion   a dtype, a tensor whose dtype is meant, or a device, which is ignored
    placement    a device, layout, memory format or flag; ignored: everything is dense, on the CPU
    reduction    mean, sum or none
    rounding     floor or trunc
    approximation  none or tanh
    order        1, 2, infinity, or fro, which is 2 here
    absent, off  accepted only as null, and only as false
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DTYPES = ("float32", "float64", "int64", "int32", "bool")

_TABLE = """
# Arithmetic; of two numbers without a tensor too
add(input:operand, other:operand, alpha:number=1) = torch.add .add operator.add
sub(input:operand, other:operand, alpha:number=1) = torch.sub torch.subtract .sub .subtract operator.sub
mul(input:operand, other:operand) = torch.mul torch.multiply .mul .multiply operator.mul
div(input:operand, other:operand, rounding_mode:rounding=null) = torch.div torch.divide torch.true_divide .div .divide .true_divide operator.truediv
floor_divide(input:operand, other:operand) = torch.floor_divide .floor_divide operator.floordiv
remainder(input:operand, other:operand) = torch.remainder .remainder operator.mod
pow(input:operand, exponent:operand) = torch.pow .pow operator.pow
neg(input:operand) = torch.neg torch.negative .neg .negative operator.neg
positive(input:operand) = torch.positive .positive operator.pos
abs(input:operand) = torch.abs torch.absolute .abs .absolute operator.abs

# Comparison and logic
eq(input:operand, other:operand) = torch.eq .eq operator.eq
ne(input:operand, other:operand) = torch.ne torch.not_equal .ne .not_equal operator.ne
lt(input:operand, other:operand) = torch.lt torch.less .lt .less operator.lt
le(input:operand, other:operand) = torch.le torch.less_equal .le .less_equal operator.le
gt(input:operand, other:operand) = torch.gt torch.greater .gt .greater operator.gt
ge(input:operand, other:operand) = torch.ge torch.greater_equal .ge .greater_equal operator.ge
bitwise_and(input:operand, other:operand) = torch.bitwise_and .bitwise_and operator.and_
bitwise_or(input:operand, other:operand) = torch.bitwise_or .bitwise_or operator.or_
bitwise_xor(input:operand, other:operand) = torch.bitwise_xor .bitwise_xor operator.xor
bitwise_not(input:operand) = torch.bitwise_not .bitwise_not operator.invert operator.inv
logical_and(input, other) = torch.logical_and .logical_and
logical_or(input, other) = torch.logical_or .logical_or
logical_xor(input, other) = torch.logical_xor .logical_xor
logical_not(input) = torch.logical_not .logical_not
isnan(input) = torch.isnan .isnan
isinf(input) = torch.isinf .isinf
isfinite(input) = torch.isfinite .isfinite

# Elementwise
exp(input) = torch.exp .exp
exp2(input) = torch.exp2 .exp2
expm1(input) = torch.expm1 .expm1 torch._C._special.special_expm1
log(input) = torch.log .log
log1p(input) = torch.log1p .log1p torch._C._special.special_log1p
log2(input) = torch.log2 .log2
log10(input) = torch.log10 .log10
sqrt(input) = torch.sqrt .sqrt
rsqrt(input) = torch.rsqrt .rsqrt
square(input) = torch.square .square
reciprocal(input) = torch.reciprocal .reciprocal
sin(input) = torch.sin .sin
cos(input) = torch.cos .cos
tanh(input) = torch.tanh .tanh torch.nn.functional.tanh
erf(input) = torch.erf .erf torch._C._special.special_erf
sigmoid(input) = torch.sigmoid .sigmoid torch.nn.functional.sigmoid torch._C._special.special_expit
logit(input, eps:number=null) = torch.logit .logit torch._C._special.special_logit
sign(input) = torch.sign torch.sgn .sign .sgn
floor(input) = torch.floor .floor
ceil(input) = torch.ceil .ceil
round(input) = torch.round .round
trunc(input) = torch.trunc torch.fix .trunc .fix
relu(input, inplace:off=false) = torch.relu .relu torch.nn.functional.relu
leaky_relu(input, negative_slope:number=0.01, inplace:off=false) = torch.nn.functional.leaky_relu
elu(input, alpha:number=1.0, inplace:off=false) = torch.nn.functional.elu
gelu(input, approximate:approximation="none") = torch._C._nn.gelu
silu(input, inplace:off=false) = torch.nn.functional.silu
softplus(input, beta:number=1, threshold:number=20) = torch._C._nn.softplus
logsigmoid(input) = torch._C._nn.log_sigmoid
logaddexp(input, other) = torch.logaddexp .logaddexp
xlogy(input, other) = torch.xlogy .xlogy torch._C._special.special_xlogy
maximum(input, other) = torch.maximum .maximum
minimum(input, other) = torch.minimum .minimum
clamp(input, min:operand=null, max:operand=null) = torch.clamp torch.clip .clamp .clip
clamp_min(input, min:operand) = torch.clamp_min .clamp_min
clamp_max(input, max:operand) = torch.clamp_max .clamp_max
lerp(input, end, weight:operand) = torch.lerp .lerp
where(condition, input:operand, other:operand) = torch.where
where_method(input, condition, other:operand) = .where
masked_fill(input, mask, value:operand) = torch.masked_fill .masked_fill
nan_to_num(input, nan:number=0, posinf:number=null, neginf:number=null) = torch.nan_to_num .nan_to_num

# Reduction
sum(input, dim:ints=null, keepdim:bool=false, dtype:dtype=null) = torch.sum .sum
nansum(input, dim:ints=null, keepdim:bool=false, dtype:dtype=null) = torch.nansum .nansum
mean(input, dim:ints=null, keepdim:bool=false, dtype:dtype=null) = torch.mean .mean
nanmean(input, dim:ints=null, keepdim:bool=false, dtype:dtype=null) = torch.nanmean .nanmean
var(input, dim:ints=null, unbiased:bool=null, keepdim:bool=false, correction:int=null) = torch.var .var
std(input, dim:ints=null, unbiased:bool=null, keepdim:bool=false, correction:int=null) = torch.std .std
max(input, dim:operand=null, keepdim:bool=false) = torch.max .max
min(input, dim:operand=null, keepdim:bool=false) = torch.min .min
amax(input, dim:ints=null, keepdim:bool=false) = torch.amax .amax
amin(input, dim:ints=null, keepdim:bool=false) = torch.amin .amin
argmax(input, dim:int=null, keepdim:bool=false) = torch.argmax .argmax
argmin(input, dim:int=null, keepdim:bool=false) = torch.argmin .argmin
any(input, dim:ints=null, keepdim:bool=false) = torch.any .any
all(input, dim:ints=null, keepdim:bool=false) = torch.all .all
count_nonzero(input, dim:ints=null) = torch.count_nonzero .count_nonzero
logsumexp(input, dim:ints, keepdim:bool=false) = torch.logsumexp .logsumexp torch._C._special.special_logsumexp
vector_norm(x, ord:order=2, dim:ints=null, keepdim:bool=false, dtype:dtype=null) = torch._C._linalg.linalg_vector_norm
norm(input, p:order="fro", dim:ints=null, keepdim:bool=false, out:absent=null, dtype:dtype=null) = torch.functional.norm .norm
softmax(input, dim:int, dtype:dtype=null, _stacklevel:int=3) = torch.softmax .softmax torch.nn.functional.softmax
log_softmax(input, dim:int, dtype:dtype=null, _stacklevel:int=3) = torch.log_softmax .log_softmax torch.nn.functional.log_softmax
cumsum(input, dim:int, dtype:dtype=null) = torch.cumsum .cumsum
logcumsumexp(input, dim:int) = torch.logcumsumexp .logcumsumexp
dot(input, tensor) = torch.dot .dot
mv(input, vec) = torch.mv .mv
matmul(input, other) = torch.matmul torch.mm .matmul .mm operator.matmul
outer(input, vec2) = torch.outer .outer
sort(input, dim:int=-1, descending:bool=false, stable:bool=false) = torch.sort .sort
argsort(input, dim:int=-1, descending:bool=false, stable:bool=false) = torch.argsort .argsort
topk(input, k:int, dim:int=-1, largest:bool=true, sorted:bool=true) = torch.topk .topk

# Loss of two tensors of one shape
mse_loss(input, target, size_average:absent=null, reduce:absent=null, reduction:reduction="mean", weight:absent=null) = torch.nn.functional.mse_loss
l1_loss(input, target, size_average:absent=null, reduce:absent=null, reduction:reduction="mean", weight:absent=null) = torch.nn.functional.l1_loss
smooth_l1_loss(input, target, size_average:absent=null, reduce:absent=null, reduction:reduction="mean", beta:number=1.0) = torch.nn.functional.smooth_l1_loss
huber_loss(input, target, reduction:reduction="mean", delta:number=1.0, weight:absent=null) = torch.nn.functional.huber_loss
kl_div(input, target, size_average:absent=null, reduce:absent=null, reduction:reduction="mean", log_target:bool=false) = torch.nn.functional.kl_div
binary_cross_entropy_with_logits(input, target, weight:tensor=null, size_average:absent=null, reduce:absent=null, reduction:reduction="mean", pos_weight:tensor=null) = torch.nn.functional.binary_cross_entropy_with_logits

# Shape and choice
reshape(input, *shape) = torch.reshape .reshape .view
reshape_as(input, other) = .reshape_as .view_as
flatten(input, start_dim:int=0, end_dim:int=-1) = torch.flatten .flatten
ravel(input) = torch.ravel .ravel
unsqueeze(input, dim:int) = torch.unsqueeze .unsqueeze
squeeze(input, dim:ints=null) = torch.squeeze .squeeze
transpose(input, dim0:int, dim1:int) = torch.transpose torch.swapaxes .transpose .swapaxes
permute(input, *dims) = torch.permute .permute
t(input) = torch.t .t @T
mT(input) = @mT
expand(input, *size) = .expand torch.broadcast_to .broadcast_to
expand_as(input, other) = .expand_as
repeat(input, *repeats) = .repeat
cat(tensors:tensors, dim:int=0) = torch.cat torch.concat torch.concatenate
stack(tensors:tensors, dim:int=0) = torch.stack
split(tensor, split_size_or_sections:ints, dim:int=0) = torch.functional.split torch.split
split_method(input, split_size:ints, dim:int=0) = .split
chunk(input, chunks:int, dim:int=0) = torch.chunk .chunk
unbind(input, dim:int=0) = torch.unbind .unbind
narrow(input, dim:int, start:int, length:int) = torch.narrow .narrow
select(input, dim:int, index:int) = torch.select .select
index_select(input, dim:int, index) = torch.index_select .index_select
gather(input, dim:int, index) = torch.gather .gather
masked_select(input, mask) = torch.masked_select .masked_select
getitem(input:any, index:index) = operator.getitem
flip(input, *dims) = torch.flip .flip
roll(input, shifts:ints, dims:ints=null) = torch.roll .roll
diff(input, n:int=1, dim:int=-1) = torch.diff .diff
tril(input, diagonal:int=0) = torch.tril .tril
triu(input, diagonal:int=0) = torch.triu .triu
zeros_like(input, dtype:dtype=null, layout:placement=null, device:placement=null, requires_grad:off=false, memory_format:placement=null, pin_memory:placement=null) = torch.zeros_like
ones_like(input, dtype:dtype=null, layout:placement=null, device:placement=null, requires_grad:off=false, memory_format:placement=null, pin_memory:placement=null) = torch.ones_like
full_like(input, fill_value:number, dtype:dtype=null, layout:placement=null, device:placement=null, requires_grad:off=false, memory_format:placement=null, pin_memory:placement=null) = torch.full_like
arange(start:number, end:number=null, step:number=1, dtype:dtype=null, layout:placement=null, device:placement=null, requires_grad:off=false, pin_memory:placement=null) = torch.arange

# Conversion
to(input, *args:conversion, dtype:dtype=null, device:placement=null, non_blocking:placement=null, copy:placement=null, memory_format:placement=null) = .to
type_as(input, other) = .type_as
float(input, memory_format:placement=null) = .float
double(input, memory_format:placement=null) = .double
long(input, memory_format:placement=null) = .long
int(input, memory_format:placement=null) = .int
bool(input, memory_format:placement=null) = .bool
cpu(input, memory_format:placement=null) = .cpu
detach(input) = torch.detach .detach
clone(input, memory_format:placement=null) = torch.clone .clone
contiguous(input, memory_format:placement=null) = .contiguous

# What a value is
size(input, dim:int=null) = .size @shape
ndim(input) = .dim .ndimension @ndim
numel(input) = torch.numel .numel .nelement
dtype(input) = @dtype
device(input) = @device
values(input:any) = @values
indices(input:any) = @indices

# Of numbers without a tensor
math_exp(x:number) = math.exp
math_expm1(x:number) = math.expm1
math_log(x:number, base:number=null) = math.log
math_log1p(x:number) = math.log1p
math_log2(x:number) = math.log2
math_log10(x:number) = math.log10
math_sqrt(x:number) = math.sqrt
math_pow(x:number, y:number) = math.pow
math_tanh(x:number) = math.tanh
math_sin(x:number) = math.sin
math_cos(x:number) = math.cos
math_floor(x:number) = math.floor
math_ceil(x:number) = math.ceil
math_fabs(x:number) = math.fabs
"""  # noqa: E501 - one operation a line, or it is no table

_LINE = re.compile(r"(\w+)\((.*)\) = (.+)")
_PARAMETER = re.compile(r"(\*?)(\w+)(?::(\w+))?(?:=(.+))?")
_ALIASES = {"axis": "dim", "keepdims": "keepdim", "self": "input"}
"""Other names under which torch takes the same argument."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of an operation."""

    name: str
    kind: str
    is_rest: bool = False
    is_required: bool = True
    default: Any = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One allowed operation, the arguments it takes, and the names it has on the wire."""

    name: str
    parameters: Sequence[Parameter]
    wire_names: Sequence[str]
    section: str

    def parameter(self, name: str) -> Parameter | None:
        """The parameter that a keyword argument means; one that takes the rest has no keyword."""
        by_name = {each.name: each for each in self.parameters if not each.is_rest}
        return by_name.get(name) or by_name.get(_ALIASES.get(name, name))


def _parameter(text: str) -> Parameter:
    match = _PARAMETER.fullmatch(text)
    assert match, f"parameter {text!r} does not parse"
    star, name, kind, default = match.groups()
    is_rest = bool(star)
    return Parameter(
        name,
        kind or ("shape" if is_rest else "tensor"),
        is_rest,
        is_required=default is None and not is_rest,
        default=json.loads(default) if default else None,
    )


def _operations() -> list[Operation]:
    found: list[Operation] = []
    section = ""
    for line in _TABLE.strip().splitlines():
        if line.startswith("# "):
            section = line.removeprefix("# ")
        elif line:
            match = _LINE.fullmatch(line)
            assert match, f"line {line!r} does not parse"
            name, parameters, wire_names = match.groups()
            parsed = [_parameter(each) for each in parameters.split(", ")]
            found.append(Operation(name, parsed, wire_names.split(), section))
    return found


OPERATIONS: Mapping[str, Operation] = {each.name: each for each in _operations()}

BY_WIRE_NAME: Mapping[str, Operation] = {
    wire_name: each for each in OPERATIONS.values() for wire_name in each.wire_names
}

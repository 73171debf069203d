"""Writes docs/custom-losses.md from the table of operations: ``python docs/custom_losses.py``."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

from cyclora_core import custom_loss, custom_loss_arguments
from cyclora_core.custom_loss_table import DTYPES, OPERATIONS, Operation, Parameter
from cyclora_core.store import custom_losses

PAGE = Path(__file__).with_name("custom-losses.md")

_HEAD = """\
# Custom losses on the server

A loss function of your own, uploaded once and run by the server in one pass:

```python
def kl_ppo(logprobs, old, advantages, mask):
    ratio = torch.exp(logprobs - old)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    kl = torch.exp(old - logprobs) - 1 - (old - logprobs)
    loss = -((surrogate - 0.1 * kl) * mask).sum()
    return loss, {{"custom/kl:mean": (kl * mask).sum() / mask.sum().clamp(min=1)}}


ranks = {{"logprobs": 1, "old": 1, "advantages": 1, "mask": 1}}
handle = service.create_custom_loss(kl_ppo, ranks).result()
training.forward_backward_custom(data, handle)
```

The SDK traces the function with torch.fx and uploads the graph. The server runs it for each datum
with that datum's logprobs, in fp32 on the CPU, and differentiates it by them. The loss of the
operation is the sum over its data. Metrics that end in `:sum` are added up, those in `:mean` are
averaged over the data, and `loss:sum` is always there. `training.forward(data, "custom",
{{"loss_id": handle.loss_id}})` gives the loss and the metrics without a gradient.

- `logprobs` has the shape of `target_tokens`: rank 1 is `[T]`, rank 2 is `[T, K]`. Other inputs are
  the `loss_fn_inputs` of their name, of any length; rank 0 is a tensor of one element. Integers
  come as int64, anything else as float32. A datum may have more inputs than the loss reads.
- The loss must be a float tensor of shape `[]`, finite, with a finite gradient; a metric is one
  number. If it is not so for one datum, the operation fails as a whole, contributes nothing, and
  says which datum it was. Beware of `where`: a branch that it drops still spoils the gradient with
  a NaN if it is a `log` or `sqrt` at 0.
- A graph is only ever read as data: each name in it is looked up in the table below and nowhere
  else. What is not there is refused when it is uploaded, with the node's name.
- Devices, layouts and memory formats are ignored. Dtypes are {dtypes}.
- A loss belongs to the session that uploaded it, and ends with it. Passes that were sent before
  hold a copy of their loss and run, and are replayed after a crash, all the same.

| bound | |
|---|---|
{bounds}

Refused on purpose: operations in place, random ones (a replay must give the same numbers), those
that leave torch, tensors made of nothing but a size (`arange` apart), and those whose gradient
takes more than linear time.

(This page is made by docs/custom_losses.py.)
"""


def _bounds() -> str:
    rows = {
        "upload": f"{custom_loss.MAX_UPLOAD_BYTES} bytes",
        "inputs, `logprobs` included": custom_loss.MAX_INPUTS,
        "nodes": custom_loss.MAX_NODES,
        "metrics": custom_loss.MAX_METRICS,
        "elements of one value": custom_loss.MAX_VALUE_ELEMENTS,
        "elements of all values of one datum": custom_loss.MAX_TOTAL_ELEMENTS,
        "magnitude of an integer": custom_loss_arguments.MAX_INTEGER,
        "time": "2 s for one datum, 20 s for the data of one operation in one cycle",
        "losses of a session": f"{custom_losses.MAX_LOSSES_PER_SESSION}, "
        f"{custom_losses.MAX_BYTES_PER_SESSION} bytes together",
        "losses of a tenant": f"{custom_losses.MAX_LOSSES_PER_TENANT}, "
        f"{custom_losses.MAX_BYTES_PER_TENANT} bytes together",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _parameter(parameter: Parameter) -> str:
    if parameter.is_rest:
        return f"*{parameter.name}"
    if parameter.is_required:
        return parameter.name
    return f"{parameter.name}={_literal(parameter.default)}"


def _literal(value: object) -> str:
    names = {"null": "None", "true": "True", "false": "False"}
    text = json.dumps(value)
    return names.get(text, text)


def _row(operation: Operation) -> str:
    # What may only be left at its default is not worth a reader's time.
    told = [p for p in operation.parameters if p.kind not in ("absent", "off", "placement")]
    told = [p for p in told if not p.name.startswith("_")]
    arguments = ", ".join(_parameter(each) for each in told)
    names = ", ".join(f"`{each}`" for each in operation.wire_names)
    return f"| {names} | `({arguments})` |"


def page() -> str:
    """The whole page."""
    parts = [_HEAD.format(bounds=_bounds(), dtypes=", ".join(DTYPES))]
    parts.append(
        "\n## Allowed operations\n\n"
        "`.name` is a tensor method, `@name` an attribute, `torch._C...` what torch.fx calls\n"
        "functions of `torch.nn.functional`, `torch.special` and `torch.linalg`; `operator` is\n"
        "Python's arithmetic. `axis` and `keepdims` are understood too.\n"
    )
    for section, operations in groupby(OPERATIONS.values(), lambda each: each.section):
        rows = "\n".join(_row(each) for each in operations)
        parts.append(f"\n### {section}\n\n| names | arguments |\n|---|---|\n{rows}\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())

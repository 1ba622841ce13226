"""Measures what it costs to keep documents apart, and compares the result with each document alone.

``python -m benchmarks.documents`` trains on windows of the same tokens, joined and confined in
turns, and takes the ratio of CPU times round by round, so that a busy machine changes it little.
Then it sets loss and gradients of packed documents, in float64, against the sums of those that each
document gives alone.

On a CPU a dense mask keeps documents apart. On a GPU in 16 bits FlexAttention passes over blocks of
other documents: where there is one, a third table has GPT-2's twelve blocks, compiled.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.usage import arguments
from llm_train.model.loss import CausalLM
from llm_train.model.network import LanguageModel, Transformer, initialise
from llm_train.model.network.confined import confine, own_targets

END, VOCABULARY, BATCH = 0, 512, 4
ROUNDS, POSITIONS = 5, ("rotary", "learned", "sinusoidal", "alibi", "none")


def network(
    sequence: int, positions: str, layers: int = 4, width: int = 128, heads: int = 4
) -> LanguageModel:
    """Small, and with next to no head."""
    config = Transformer(
        vocab_size=VOCABULARY,
        layers=layers,
        width=width,
        heads=heads,
        max_sequence=sequence,
        positions=positions,  # type: ignore[arg-type]  # one of those it knows
    )
    built = config.build()
    initialise(built, 0)
    return built


def windows(sequence: int, mean: int, batch: int = BATCH) -> tuple[Tensor, list[Tensor]]:
    """(batch, sequence + 1) of whole documents, filled up with -1, and the documents."""
    generator = torch.Generator().manual_seed(0)
    out, documents = torch.full((batch, sequence + 1), -1), []
    for row in out:
        room = sequence + 1
        while room > 1:
            length = min(room, 2 + int(torch.randint(2 * mean, (), generator=generator)))
            document = torch.randint(1, VOCABULARY, (length,), generator=generator)
            document[-1] = END
            row[sequence + 1 - room :][:length] = document
            documents.append(document)
            room -= length
    return out, documents


def score(net: LanguageModel, tokens: Tensor, *, confined: bool) -> Tensor:
    """Objective of windows, summed over targets, with its gradients."""
    inputs, targets, given = tokens[:, :-1], tokens[:, 1:], {}
    if confined:
        given["documents"] = confine(inputs, END, blocks=inputs.is_cuda)
        targets = own_targets(targets, inputs, END)
    targets = targets.masked_fill(targets < 0, -100)
    objective: Tensor = net(
        inputs.clamp(min=0), partial(CausalLM(), targets=targets), **given
    ).objective
    objective.backward()  # type: ignore[no-untyped-call]
    return objective.detach()


def seconds(net: LanguageModel, tokens: Tensor, *, confined: bool) -> float:
    """CPU time of a forward and a backward."""
    net.zero_grad()
    before = time.process_time()
    score(net, tokens, confined=confined)
    return time.process_time() - before


def cost(sequence: int, positions: str) -> tuple[float, float]:
    """Microseconds of CPU a token, joined; how many times that a token costs, confined."""
    net, (tokens, _) = network(sequence, positions), windows(sequence, sequence // 8)
    pairs = [[seconds(net, tokens, confined=c) for c in (False, True)] for _ in range(ROUNDS + 1)]
    joined = median(pair[0] for pair in pairs[1:]) / (BATCH * sequence)
    return 1e6 * joined, median(apart / together for together, apart in pairs[1:])


def device_cost(sequence: int, mean: int) -> tuple[float, float, float]:
    """Milliseconds of forward and backward on a GPU, joined and confined, and their ratio."""
    net = network(sequence, "rotary", layers=12, width=768, heads=12).cuda()
    for block in net.blocks():
        block.compile(dynamic=False)
    tokens = windows(sequence, mean, batch=32768 // sequence)[0].cuda()

    def milliseconds(confined: bool) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        net.zero_grad()
        begin.record()
        with torch.autocast("cuda", torch.bfloat16):
            score(net, tokens, confined=confined)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    pairs = [[milliseconds(c) for c in (False, True)] for _ in range(4 * ROUNDS)][ROUNDS:]
    joined, confined = (median(times) for times in zip(*pairs, strict=True))
    return joined, confined, median(apart / together for together, apart in pairs)


def difference(positions: str) -> tuple[float, float]:
    """Of loss, relative, and of gradients, over the norm of all: packed against alone."""
    net = network(128, positions).double()
    tokens, documents = windows(128, 16)
    packed = score(net, tokens, confined=True)
    found = [parameter.grad for parameter in net.parameters()]
    net.zero_grad(set_to_none=True)
    alone = sum(score(net, document[None], confined=False) for document in documents)
    apart = size = torch.zeros((), dtype=torch.float64)
    for gradient, parameter in zip(found, net.parameters(), strict=True):
        if gradient is not None and parameter.grad is not None:
            apart = apart + (gradient - parameter.grad).square().sum()
            size = size + parameter.grad.square().sum()
    return float((packed - alone).abs() / alone), float((apart / size).sqrt())


def main() -> None:
    """Prints both tables."""
    arguments()
    torch.set_num_threads(1)
    print("positions   sequence  joined us/token  confined / joined")
    cases = [(256, "rotary"), (256, "learned"), (256, "alibi"), (1024, "rotary")]
    for sequence, positions in cases:
        joined, ratio = cost(sequence, positions)
        print(f"{positions:<12}{sequence:>8}{joined:>17.2f}{ratio:>19.3f}")
    print("\npositions   loss differs by  gradient differs by (float64, packed against alone)")
    for positions in POSITIONS:
        loss, gradient = difference(positions)
        print(f"{positions:<12}{loss:>15.1e}{gradient:>21.1e}")
    if torch.cuda.is_available():
        print(
            f"\n{torch.cuda.get_device_name()}: sequence  document  joined ms  confined ms  ratio"
        )
        for sequence, mean in [(1024, 128), (1024, 512), (4096, 512), (8192, 512)]:
            print(sequence, mean, *(f"{found:.2f}" for found in device_cost(sequence, mean)))


if __name__ == "__main__":
    main()

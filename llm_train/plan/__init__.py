"""What a run would take, before it is launched and without a GPU: memory, time, traffic.

``devices`` knows GPUs by name; ``formula`` and ``traffic`` count bytes by arithmetic; ``watch``,
``simulate`` and ``scale`` measure the real step under fake tensors; ``speed`` turns both into
seconds; ``search`` compares configurations; ``report`` and ``verb`` say it.

How a plan for a thousand ranks takes seconds: blocks are identical, so the step is simulated with
three and with four of them, sharded over the full fake process group, and everything that is
measured is continued along that line. Activations do not depend on other ranks and are simulated on
one, once for each recompute policy and for two micro-batches.

Nothing is imported here: every run asks ``forecast``, and only the verb needs the rest.
"""

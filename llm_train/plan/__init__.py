"""What a run would take, before it is launched and without a GPU: memory, time, traffic.

``watch``, ``simulate`` and ``scale`` measure the real step under fake tensors, ``compiled`` asks
what a compiler would not keep, ``speed`` and ``roofline`` turn operations and bytes into seconds.
``cost_model`` adds the formulas that strategies declare themselves, ``search`` compares
configurations, and ``sections`` shows them. Devices are in ``llm_train.runtime.devices``.

A plan for a thousand ranks takes seconds, because blocks are identical: the step is simulated with
three and with four of them, sharded over the full fake process group, and everything that is
measured is continued along that line. Activations do not depend on other ranks and are simulated on
one, once for each recompute policy and for two micro-batches.
"""

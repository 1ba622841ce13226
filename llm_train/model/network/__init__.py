"""Networks: a configuration (``Network``) that builds a torch module (``LanguageModel``).

Usable in YAML as ``class_path``: ``Transformer``.
"""

from llm_train.discovery import load
from llm_train.model.network.base import ForwardFlops as ForwardFlops
from llm_train.model.network.base import Initial as Initial
from llm_train.model.network.base import LanguageModel as LanguageModel
from llm_train.model.network.base import Network as Network
from llm_train.model.network.base import Readout as Readout
from llm_train.model.network.flops import Counts as Counts
from llm_train.model.network.init import initialise as initialise
from llm_train.model.network.init import materialise as materialise
from llm_train.model.network.rotary_scaling import RotaryScaling as RotaryScaling
from llm_train.model.network.sample import generate as generate
from llm_train.model.network.transformer import Transformer as Transformer

load(__name__)

"""An HTTP endpoint in OpenAI's format for a trained network: what is asked, computed and answered.

It needs the extra ``serve``, and only ``llm-train serve`` imports it.
"""

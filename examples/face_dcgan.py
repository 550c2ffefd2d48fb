"""Faces of 64x64 pixels by a DCGAN: pip install --no-deps gan-face-generate

edgegen export examples/face_dcgan.py:generator --input 'input:float32[batch,100,1,1]' -o faces
"""

from pathlib import Path

import gan_face_generate
import torch
from gan_face_generate.models import Generator


def generator() -> Generator:
    weights = Path(gan_face_generate.__file__).with_name("weights.tar")
    net = Generator(0, 3, 100, 64)
    net.load_state_dict(torch.load(weights, "cpu", weights_only=True)["netG_state_dict"])
    return net

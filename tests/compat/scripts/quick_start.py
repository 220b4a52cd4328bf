"""The shortest script, of the study: a prompt in, and the picture where older versions have it."""

import sys

from omnimuse.compat.vllm_omni.entrypoints.omni import Omni

if __name__ == "__main__":
    omni = Omni(model=sys.argv[1])
    prompt = "a cup of coffee on the table"
    outputs = omni.generate(prompt)
    images = outputs[0].request_output[0].images
    images[0].save(sys.argv[2])

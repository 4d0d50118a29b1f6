"""From files of questions and images to packed rows of tokens.

`formats` loads examples (`example`), `encode` makes token ids of them with the chat template
(`template`), `packing` puts those into rows and batches. `sciencebook` makes data of its own.
Nothing is imported here: `varifocal data make` needs no torch.
"""

"""Networks: what an architecture is, one file each in `architectures`; cutting, folding, weights, saliency."""

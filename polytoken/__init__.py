"""Networks: plain torch.nn, nothing of Lightning."""

"""Networks as files that other runtimes execute: ONNX, and torch.export."""

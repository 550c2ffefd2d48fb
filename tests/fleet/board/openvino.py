"""A board has no openvino."""

raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

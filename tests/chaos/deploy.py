"""Deploy the application on a cluster and exit: ``python -m tests.chaos.deploy JSON``."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Deploy; the JSON object has the cluster's address, the settings and the HTTP port."""
    import ray
    from ray import serve

    from serve_app.app import build

    values = json.loads(sys.argv[1])
    ray.init(values["address"], log_to_driver=False)
    serve.start(
        proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": values["port"]}
    )
    serve.run(build(values["args"]), name="earth2serve", route_prefix="/")


if __name__ == "__main__":
    main()

"""The configuration that Serve generates for HAProxy."""

from __future__ import annotations

from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serve_app.ports import free_port


class Generated:
    """Serve's files for HAProxy in a folder, as its proxy manager writes them.

    Parameters
    ----------
    folder : Path
        Its path must be short, because a socket's is limited.
    replica, fallback : int, optional
        Ports of an ingress replica and of Serve's own proxy. Without them no route is known yet.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replica: int | None = None,
        fallback: int | None = None,
        host: str = "127.0.0.1",
        prefix: str = "/",
    ) -> None:
        self.port = free_port()
        self.file = folder / "haproxy.cfg"
        self.control = folder / "admin.sock"
        backends = {}
        if replica is not None:
            backends["http-earth2serve"] = BackendConfig(
                name="http-earth2serve",
                path_prefix=prefix,
                app_name="earth2serve",
                servers=[ServerConfig(name="replica", host="127.0.0.1", port=replica)],
                fallback_server=None
                if fallback is None
                else ServerConfig(name="fallback", host="127.0.0.1", port=fallback),
                health_check_inter="100ms",
            )
        api = HAProxyApi(
            HAProxyConfig(
                socket_path=str(self.control),
                server_state_base=str(folder),
                server_state_file=str(folder / "server-state"),
                metrics_socket_path=str(folder / "metrics.sock"),
                metrics_port=free_port(),
                stats_port=free_port(),
                http_options=HTTPOptions(host=host, port=self.port),
                is_head=True,
            ),
            backends,
            config_file_path=str(self.file),
        )
        api.cfg.has_received_routes = bool(backends)
        api._generate_config_file_internal()

    @property
    def text(self) -> str:
        """The present contents of the file."""
        return self.file.read_text()

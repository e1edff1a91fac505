"""The server: a store over gRPC.

store = Store(config)
server = serve(store, config)
print(server.address)
server.wait()                    # until another thread calls server.stop()
"""

from __future__ import annotations

from kvstore.server.running import Server, serve

__all__ = ["Server", "serve"]

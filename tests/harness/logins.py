"""User credentials as an operator issues them: JWTs that name an account, and run out."""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import time
from pathlib import Path
from typing import Any


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Operator:
    """An operator with one account; needs the `nkeys` package."""

    def __init__(self) -> None:
        nkeys = importlib.import_module("nkeys")

        self._nkeys = nkeys
        self._operator = self._key(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = self._key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._system = self._key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._user = self._key(nkeys.PREFIX_BYTE_USER)

    def _key(self, prefix: int) -> Any:
        return self._nkeys.from_seed(bytearray(self._nkeys.encode_seed(os.urandom(32), prefix)))

    def config(self) -> str:
        """For the server."""
        unlimited = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True}
        unlimited |= {"conn": -1, "leaf": -1, "disk_storage": 1 << 30, "mem_storage": 1 << 26, "streams": -1}
        unlimited |= {"consumer": -1}
        system = {**unlimited, "disk_storage": 0, "mem_storage": 0, "streams": 0, "consumer": 0}
        about_operator = {"type": "operator", "version": 2, "system_account": _name(self._system)}
        jwts = {
            _name(key): self._sign(self._operator, key, {"limits": limits, "type": "account", "version": 2})
            for key, limits in ((self._account, unlimited), (self._system, system))
        }
        preload = ", ".join(f'{name}: "{jwt}"' for name, jwt in jwts.items())
        return (
            f'operator: "{self._sign(self._operator, self._operator, about_operator)}"\n'
            f"system_account: {_name(self._system)}\nresolver: MEMORY\nresolver_preload {{ {preload} }}\n"
        )

    def write_credentials(self, path: Path, seconds: float) -> None:
        """A credentials file that is good for so long."""
        claims = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1, "type": "user", "version": 2}
        jwt = self._sign(self._account, self._user, claims, int(time.time() + seconds))
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self._user.seed.decode()}\n------END USER NKEY SEED------\n"
        )

    def _sign(self, issuer: Any, subject: Any, about: dict[str, Any], expires: int | None = None) -> str:
        claims: dict[str, Any] = {"iat": int(time.time()), "iss": _name(issuer), "name": "test", "sub": _name(subject)}
        claims["nats"] = about
        if expires is not None:
            claims["exp"] = expires
        digest = hashlib.new("sha512_256", json.dumps(claims, sort_keys=True).encode()).digest()
        claims["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
        head = _b64(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
        signed = f"{head}.{_b64(json.dumps(claims).encode())}"
        return f"{signed}.{_b64(issuer.sign(signed.encode()))}"


def _name(key: Any) -> str:
    return str(key.public_key.decode())

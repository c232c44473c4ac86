"""HTTP clients for metrics and control calls, and the trusted certificates."""

from __future__ import annotations

import json
import os
import re
import shlex
import ssl
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import httpx

from workbench.errors import ParameterError

_CA_FILE, _CA_FOLDER = "SSL_CERT_FILE", "SSL_CERT_DIR"
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's codes for a chain without a trusted authority (X509_V_ERR_...)."""
_API_PATH = re.compile(r"(/v1(/chat)?(/completions|/models)?|/metrics)$")


def control_client(
    timeout_s: float = 10.0, *, headers: Mapping[str, str] | None = None
) -> httpx.AsyncClient:
    """An httpx client that ignores proxy variables; use it as a context manager.

    `headers` go with every request: the API key, only to the servers that need it.
    """
    return httpx.AsyncClient(
        timeout=timeout_s, trust_env=False, verify=control_context(), headers=headers
    )


def curl_line(url: str, model: str) -> str:
    """The command that sends a short completion request to a server."""
    body = {"model": model, "prompt": "A KV cache holds", "max_tokens": 16}
    header = "-H 'Content-Type: application/json'"
    return f"curl {url}/v1/completions {header} -d {shlex.quote(json.dumps(body))}"


def control_context() -> ssl.SSLContext:
    """What control calls trust: `tls_context`, or nothing if it cannot be read.

    Servers without TLS work either way.
    """
    try:
        return tls_context()
    except ParameterError:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def tls_context() -> ssl.SSLContext:
    """What load and control calls trust: SSL_CERT_FILE or SSL_CERT_DIR, as for curl and OpenSSL.

    Without them certifi's list and the system's own. Read once, since it blocks for 50 ms. Raises
    ParameterError if a variable does not name certificates.
    """
    return _context(os.environ.get(_CA_FILE, ""), os.environ.get(_CA_FOLDER, ""))


@cache
def _context(file: str, folder: str) -> ssl.SSLContext:
    if not file and not folder:
        context = httpx.create_ssl_context(trust_env=False)
        context.load_default_certs()
        return context
    for name, given, known in (
        (_CA_FILE, file, Path(file).is_file()),
        (_CA_FOLDER, folder, Path(folder).is_dir()),
    ):
        if given and not known:
            kind = "file" if name == _CA_FILE else "folder"
            raise ParameterError(
                f"{name} in the environment must be an existing {kind}, got {given!r} (example:"
                f" export {_CA_FILE}=/etc/my-ca.pem)"
            )
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except OSError as error:
        raise ParameterError(
            f"{_CA_FILE} in the environment must be a PEM file with certificates, got {file!r}:"
            f" {error} (example: export {_CA_FILE}=/etc/my-ca.pem)"
        ) from error


def connect_problem(error: BaseException) -> str:
    """Why a TLS connection failed and what to do; empty if TLS was not the reason."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        todo = (
            f"trust its authority (example: export {_CA_FILE}=/etc/my-ca.pem)"
            if cause.verify_code in _UNKNOWN_AUTHORITY
            else "use the host name of the certificate, or renew the certificate"
        )
        return f"its certificate is not trusted ({cause.verify_message.rstrip('.')}); {todo}"
    if isinstance(cause, ssl.SSLError):
        return f"the TLS handshake failed ({cause.reason}); if the server has no TLS, use http://"
    return ""


def server_address(url: str) -> str:
    """The base URL of a server, without a trailing slash or API path."""
    return _API_PATH.sub("", url.strip().rstrip("/")).rstrip("/")

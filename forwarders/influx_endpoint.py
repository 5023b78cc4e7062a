"""The write endpoint of an InfluxDB 2, and of what speaks like one: bytes in, a reply out, within a time limit."""

from pathlib import Path
from typing import Any

from influxdb_client import BucketRetentionRules, InfluxDBClient
from influxdb_client.client.exceptions import InfluxDBError
from influxdb_client.rest import ApiException
from influxdb_client.service.write_service import WriteService

from forwarders.http_endpoint import Connections, NoReply, Reply, innermost
from forwarders.influx_reply import RetentionFailed, message_of


class WriteEndpoint:
    """``POST <url>/api/v2/write?org&bucket&precision=ns``. Used by one thread; keeps one connection."""

    def __init__(self, url: str, org: str, bucket: str, token: str, ca_file: Path | None, gzip: bool) -> None:
        self._org = org
        self._bucket = bucket
        self._connections = Connections()
        self._client = InfluxDBClient(
            url=url,
            token=token,
            enable_gzip=gzip,
            ssl_ca_cert=str(ca_file) if ca_file else None,
            connection_pool_maxsize=1,
        )
        self._client.api_client.rest_client.pool_manager.pool_classes_by_scheme = self._connections.pools
        self._service = WriteService(self._client.api_client)
        self._buckets = self._client.buckets_api()

    def post(self, lines: bytes, timeout_s: float) -> Reply:
        """Send lines and return the whole answer, whatever it says. Redirects are not followed. Errors: NoReply."""
        with self._connections.limited(timeout_s):
            try:
                _, status, headers = self._service.post_write_with_http_info(
                    self._org,
                    self._bucket,
                    lines,
                    precision="ns",
                    _request_timeout=timeout_s * 1000,
                    urlopen_kw={"redirect": False, "retries": False},
                )
            except ApiException as exc:
                if not exc.status:
                    raise NoReply(innermost(exc.reason)) from exc
                return Reply(exc.status, exc.body or "", (exc.headers or {}).get("Retry-After", ""))
        return Reply(status, self._client.api_client.last_response.data, headers.get("Retry-After", ""))

    def keep_for(self, retention_s: int, timeout_s: float) -> str:
        """See that the bucket, which is made when it is missing, keeps data for so long; what was changed.

        Errors: NoReply, RetentionFailed.
        """
        rules = [BucketRetentionRules(type="expire", every_seconds=retention_s)]
        with self._connections.limited(timeout_s):
            try:
                bucket = self._bucket_or_none()
                if bucket is None:
                    self._buckets.create_bucket(bucket_name=self._bucket, org=self._org, retention_rules=rules)
                    return "bucket made"
                if [rule.every_seconds for rule in bucket.retention_rules] == [retention_s]:
                    return ""
                bucket.retention_rules = rules
                self._buckets.update_bucket(bucket)
            except ApiException as exc:
                if not exc.status:
                    raise NoReply(innermost(exc.reason)) from exc
                raise RetentionFailed(f"{exc.status} {message_of(exc.body or '')}") from exc
            except InfluxDBError as exc:  # there is no such organization
                raise RetentionFailed(message_of(str(exc))) from exc
        return "bucket changed"

    def _bucket_or_none(self) -> Any:
        try:
            return next(iter(self._buckets.find_buckets(name=self._bucket, org=self._org).buckets), None)
        except ApiException as exc:
            if exc.status != 404 or "bucket" not in (exc.body or ""):
                raise
            return None

    def close(self) -> None:
        """Close the connection. Doing it twice is harmless."""
        self._client.close()

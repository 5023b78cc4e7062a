"""Applications that the collector is measured beside: one that does nothing, and what is written in an afternoon."""

import os
import threading
import uuid

import falcon
import flask
import pika


class _Nothing:
    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        response.status = falcon.HTTP_202


def empty() -> falcon.App:
    """Falcon with one route, which answers 202 and keeps nothing."""
    app = falcon.App()
    app.add_route("/1", _Nothing())
    return app


def afternoon() -> flask.Flask:
    """Flask and pika: each body goes to the queue EVENTS_QUEUE of EVENTS_URL, and is answered when it is confirmed."""
    app, local, queue = flask.Flask(__name__), threading.local(), os.environ["EVENTS_QUEUE"]
    properties = {"content_type": "application/json", "delivery_mode": 2}

    @app.post("/rest/1.0/event")
    def event() -> tuple[str, int]:
        if not hasattr(local, "channel"):
            local.channel = pika.BlockingConnection(pika.URLParameters(os.environ["EVENTS_URL"])).channel()
            local.channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
            local.channel.confirm_delivery()
        message = pika.BasicProperties(**properties, message_id=str(uuid.uuid4()))
        local.channel.basic_publish("", queue, flask.request.get_data(), message, mandatory=True)
        return "", 202

    return app

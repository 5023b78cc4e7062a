"""``GET /robots.txt``: there is nothing here for crawlers, and what they fetch would be counted as events."""

import falcon


class RobotsResource:
    """Keeps out those who ask."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer that nothing is to be fetched."""
        resp.content_type = "text/plain"
        resp.set_header("Cache-Control", "public, max-age=86400")
        resp.data = b"User-agent: *\nDisallow: /\n"

    on_head = on_get

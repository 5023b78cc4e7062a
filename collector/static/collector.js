// Sends events from a page: collector('PageView', {url: location.href, ms: 12}). No cookie, no dependency.
(function (window, document, navigator) {
  var script = document.currentScript || document.querySelector('script[src*="/collector.js"]');
  var base = script.src.replace(/\/collector\.js([?#].*)?$/, '');
  var fields = __FIELDS__; // what field 1, 2, ... of an event is called
  var digits = '-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz';
  var waiting = (window.collector || {}).q || [];
  var silent = script.hasAttribute('data-respect-privacy') &&
    (navigator.doNotTrack == 1 || window.doNotTrack == 1 || navigator.globalPrivacyControl);
  var door = base + '/rest/1.0/beacon', queue = [], busy = 0, beacons = 0, since = 0;
  var sent = 0;

  function base64(number) {
    var text = '', rest = Math.abs(number);
    do {
      text = digits[rest % 64] + text;
      rest = Math.floor(rest / 64);
    } while (rest);
    return (number < 0 ? '-' : '') + text;
  }

  // A value as a field of /1 or /2; '' for none, undefined for what only JSON can say.
  function token(value, short) {
    var type = typeof value;
    if (value == null || value !== value || value === Infinity || value === -Infinity) return '';
    if (type == 'boolean') return 'b' + +value;
    if (type == 'number') {
      return value % 1 || Math.abs(value) > 9007199254740991 ? 'd' + String(value).replace('+', '')
        : '8' + (short ? base64(value) : value + 0);
    }
    if (type == 'string') return 's' + value.replace(/[%+,]/g, encodeURIComponent).replace(/ /g, '+');
  }

  function pixel(name, values, short) {
    var tokens = [name];
    for (var i = 0; i < values.length; i++) {
      tokens.push(token(values[i], short));
      if (tokens[i + 1] === undefined) return;
    }
    if (/,/.test(name)) return;
    return base + (short ? '/2?v=' : '/1?v=') + tokens.map(encodeURIComponent).join(',') + (tokens[1] ? '' : ',');
  }

  function image(url) {
    new Image().src = url;
  }

  function post(name, payload, url) {
    var body = JSON.stringify({eventName: name, payload: payload}, function (key, value) {
      return typeof value == 'bigint' ? String(value)
        : typeof value == 'string' && value.toWellFormed ? value.toWellFormed() : value;
    });
    // of too many beacons at once a browser drops some, and does not say so
    var now = Date.now();
    if (now - since > 1e3) since = now, beacons = 0;
    if ((hidden() || beacons++ < 20) && beacon(body)) return;
    var end = queue[queue.length - 1];
    if (end && !end.again && end.body.length + body.length < 1e4) {
      end.body += body;
      end.urls.push(url);
    } else queue.push({body: body, urls: [url]});
    next();
  }

  function hidden() {
    return document.visibilityState == 'hidden';
  }

  function beacon(body) {
    try {
      return navigator.sendBeacon(door, body);
    } catch (e) {} // there is none, or it will not
  }

  // The others go by fetch, together and a few at a time; keepalive has the same bounds as a beacon.
  function next() {
    var each = busy < 6 && queue.shift();
    if (!each) return;
    function done() {
      busy--;
      next();
    }
    function failed() {
      if (window.fetch && !each.again) each.again = queue.push(each);
      else each.urls.forEach(function (url) {
        if (url) image(url);
      });
      done();
    }
    busy++;
    if (!window.fetch) return failed();
    fetch(door, {method: 'POST', body: each.body, keepalive: !each.again && each.body.length < 1e4}).then(done, failed);
  }

  function collector(name, payload) {
    if (silent) return;
    var known = ({}).hasOwnProperty.call(fields, name) ? fields[name] : [], values = payload = payload || {}, named = {}, key, url;
    if (Array.isArray(payload)) {
      payload.forEach(function (value, i) {
        if (value != null) named[known[i] || i + 1] = value;
      });
    } else {
      values = known.map(function (key) { return payload[key]; });
      for (key in named = payload) if (known.indexOf(key) < 0) values = null;
    }
    try {
      url = values && [pixel(name, values), pixel(name, values, 1)].sort(function (a, b) { return a.length - b.length; })[0];
      if (url) url += '&t=' + Date.now().toString(36) + sent++; // two requests for one address would be one
    } catch (e) {} // half of a surrogate pair has no UTF-8
    // a page that is being left drops its images
    if (url && url.length < 256 && !hidden()) image(url);
    else post(name, named, url);
  }

  document.addEventListener('visibilitychange', function () {
    while (hidden() && queue.length && beacon(queue[0].body)) queue.shift();
  });
  window.collector = function () {
    try {
      collector.apply(null, arguments);
    } catch (e) {
      console.error(e); // the page goes on
    }
  };
  for (var i = 0; i < waiting.length; i++) window.collector.apply(null, waiting[i]);
})(window, document, navigator);

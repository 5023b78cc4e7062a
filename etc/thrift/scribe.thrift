/*
 * Scribe: log messages by category. Written anew, with the names and numbers of Facebook's interface of that name,
 * which clients of Scribe are compiled against.
 *
 * Spoken over TFramedTransport and TBinaryProtocol, strict or not. A category is an event's name; a message is
 *
 *   [MILLIS ":"] BODY
 *
 * with the event's time in milliseconds since 1970 (without it: now). BODY is a JSON object, or the base64 of a struct
 * in the binary protocol, or any other text, which becomes field 1 of the event.
 */

include "fb303.thrift"

namespace java scribe.thrift
namespace cpp scribe.thrift
namespace perl Scribe.Thrift

/* OK: all messages of the call are in the spool. TRY_LATER: none is; send the call again. */
enum ResultCode {
  OK = 0,
  TRY_LATER = 1,
}

struct LogEntry {
  1: string category,
  2: string message,
}

service scribe extends fb303.FacebookService {
  ResultCode Log(1: list<LogEntry> messages),
}

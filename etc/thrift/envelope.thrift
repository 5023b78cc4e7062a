/*
 * The envelope of one event in a Thrift body of POST /rest/1.0/event. Written anew, with the names and numbers of the
 * Ning collector's serialization library.
 *
 * A body is a stream of frames, each of them
 *
 *   0a            1 byte
 *   time          i64, big-endian, milliseconds since 1970
 *   length        i32, big-endian
 *   granularity   that many bytes: MINUTE, HOURLY, DAILY, WEEKLY, MONTHLY or YEARLY
 *   envelope      the struct below, binary protocol
 *
 * The payload is a struct of its own, binary protocol: fields of the types bool, byte, i16, i32, i64, double and string,
 * with ids that are yours. A body that is only such a struct needs ?name=, the event's name.
 *
 * A field with the id 0 needs `thrift -allow-neg-keys`.
 */

namespace java com.ning.metrics.serialization.thrift

struct ThriftEnvelope {
  /* the event's name */
  0: string typeName,
  /* the event's fields; missing: none */
  1: binary payload,
  /* not used */
  2: string name,
}

/*
 * fb303: what a process tells of itself. Written anew, with the names and numbers of Facebook's interface of that name
 * (Apache Thrift, contrib/fb303), which clients of Scribe are compiled against.
 *
 * The collector answers all of it and lets nothing be changed: options are its settings' business, and reinitialize
 * and shutdown do nothing.
 */

namespace java com.facebook.fb303
namespace cpp facebook.fb303
namespace perl Facebook.FB303

/* How a process is. The collector says ALIVE, STOPPING, or WARNING while it takes no messages. */
enum fb_status {
  DEAD = 0,
  STARTING = 1,
  ALIVE = 2,
  STOPPING = 3,
  STOPPED = 4,
  WARNING = 5,
}

service FacebookService {
  /* "Ning Scribed Service" */
  string getName(),
  /* the collector's */
  string getVersion(),
  fb_status getStatus(),
  /* a sentence: what is wrong, if anything */
  string getStatusDetails(),
  /* messages accepted, filtered and rejected, and calls answered TRY_LATER, since counting began */
  map<string, i64> getCounters(),
  /* one of these; 0 for any other */
  i64 getCounter(1: string key),
  /* does nothing */
  void setOption(1: string key, 2: string value),
  /* empty */
  string getOption(1: string key),
  /* empty */
  map<string, string> getOptions(),
  /* empty */
  string getCpuProfile(1: i32 profileDurationInSec),
  /* seconds since 1970 */
  i64 aliveSince(),
  /* does nothing */
  oneway void reinitialize(),
  /* does nothing */
  oneway void shutdown(),
}

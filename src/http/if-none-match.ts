/** One element of the list, which may be empty, and the comma or the end after it. */
const ELEMENT = /[ \t]*(?:(?:W\/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*)?(,|$)/y;

/**
 * Whether an `If-None-Match` header (RFC 9110, section 13.1.2) names this entity tag: a list of tags compared weakly, or `*`
 * for any. A single tag without quotes is accepted too, because agents send a bare revision. A header malformed in any other
 * way names nothing, so that its sender gets the whole answer.
 * @param etag the current tag with its quotes
 */
export function namesEntityTag(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false;
  const alone = header.trim();
  if (alone === '*' || alone === etag.slice(1, -1)) return true;
  let found = false;
  ELEMENT.lastIndex = 0;
  let match = ELEMENT.exec(header);
  while (match) {
    if (match[1] === etag) found = true;
    if (match[2] === '') return found;
    match = ELEMENT.exec(header);
  }
  return false;
}

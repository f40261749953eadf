/** One element of the list, which may be empty, and the comma or the end after it. */
const ELEMENT = /[ \t]*(?:(?:W\/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*)?(,|$)/y;

/**
 * Whether an `If-None-Match` header (RFC 9110, section 13.1.2) names this entity tag: a list of tags compared weakly,
 * or `*` for whatever there is. The tag alone without its quotes is taken too, as agents send a revision. A header that is
 * malformed anywhere else names nothing, so its sender gets the whole answer.
 * @param etag the current tag with its quotes
 */
export function namesEntityTag(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false;
  const alone = header.trim();
  if (alone === '*' || alone === etag.slice(1, -1)) return true;
  let found = false;
  ELEMENT.lastIndex = 0;
  for (;;) {
    const match = ELEMENT.exec(header);
    if (!match) return false;
    if (match[1] === etag) found = true;
    if (match[2] === '') return found;
  }
}

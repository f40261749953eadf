/** How long a hostname may be, in characters. */
export const MAX_HOSTNAME = 255;

/**
 * The form in which hostnames are compared: lower case, composed (NFC), without a final dot. `Probe-1.` and `probe-1` are
 * one host, so they must not be two agents; what is shown is the name as it was sent.
 */
export function hostnameKey(hostname: string): string {
  // Lower case can undo the composition, as of a capital I with a dot.
  return hostname
    .normalize('NFC')
    .toLowerCase()
    .normalize('NFC')
    .replace(/(?<=.)\.$/u, '');
}

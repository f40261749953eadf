/** The most characters of a hostname. */
export const MAX_HOSTNAME = 255;

/**
 * Converts a hostname to the form for comparisons: lower case, composed (NFC), without a final dot. `Probe-1.` and
 * `probe-1` are one host, so they must not be two agents. The name is shown as it was sent.
 */
export function hostnameKey(hostname: string): string {
  // Lower case can undo the composition, for example of a capital I with a dot.
  return hostname
    .normalize('NFC')
    .toLowerCase()
    .normalize('NFC')
    .replace(/(?<=.)\.$/u, '');
}

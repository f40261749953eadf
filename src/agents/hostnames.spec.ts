import { hostnameKey } from './hostnames';

describe('the form in which hostnames are compared', () => {
  it.each([
    ['probe-1', 'probe-1'],
    ['Probe-1.Example.', 'probe-1.example'],
    ['cafe\u0301', 'caf\u00e9'],
    ['CAFE\u0301.', 'caf\u00e9'],
    ['ÄÖ', 'äö'],
    ['ΑΒΓ', 'αβγ'],
    ['a..', 'a.'],
    ['.', '.'],
  ])('of %j is %j', (hostname, key) => {
    expect(hostnameKey(hostname)).toBe(key);
  });

  it.each(['İ.example', 'A\u030a', 'ﬀ', 'ẞ', '探针'])('of %j is its own', (hostname) => {
    expect(hostnameKey(hostnameKey(hostname))).toBe(hostnameKey(hostname));
  });
});

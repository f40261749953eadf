/** Ends what postgres-setup.mjs began. */
export default () => globalThis.stopPostgres();

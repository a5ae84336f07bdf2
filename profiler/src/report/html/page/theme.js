// The colour scheme: that of the system until the button says otherwise.
const startTheme = () => {
  const button = document.getElementById('theme');
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const shown = () => document.documentElement.dataset.theme ?? (dark.matches ? 'dark' : 'light');
  const other = () => (shown() === 'dark' ? 'light' : 'dark');
  const tell = () => { button.textContent = `Show ${other()}`; };
  // A file that is opened from disk may have no storage.
  const storage = (use) => { try { return use(localStorage); } catch { return null; } };
  const kept = storage((it) => it.getItem('profiler-theme'));
  if (kept === 'light' || kept === 'dark') document.documentElement.dataset.theme = kept;
  button.addEventListener('click', () => {
    document.documentElement.dataset.theme = other();
    storage((it) => it.setItem('profiler-theme', shown()));
    tell();
  });
  dark.addEventListener('change', tell);
  tell();
};
